import requests

resp = requests.post(
    "https://smsid.co.uk/api/v1/sms/send",
    headers={"X-Api-Key": "YOUR_API_KEY"},
    json={"to": "+447700900123", "sender_id": "SMSID", "message": "Hello from SMSID"},
)
print(resp.json())
