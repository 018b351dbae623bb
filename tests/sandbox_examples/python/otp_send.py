import requests

resp = requests.post(
    "https://smsid.co.uk/api/v1/otp/send",
    headers={"X-Api-Key": "YOUR_API_KEY"},
    json={"to": "+447700900123"},
)
print(resp.json())
