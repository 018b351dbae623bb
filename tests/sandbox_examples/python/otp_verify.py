import requests

resp = requests.post(
    "https://smsid.co.uk/api/v1/otp/verify",
    headers={"X-Api-Key": "YOUR_API_KEY"},
    json={"to": "+447700900123", "code": "123456"},
)
print(resp.json())
