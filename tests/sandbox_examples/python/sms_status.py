import requests

resp = requests.post(
    "https://smsid.co.uk/api/v1/sms/status",
    headers={"X-Api-Key": "YOUR_API_KEY"},
    json={"message_id": "Dcshuhod0PMAAAFQ..."},
)
print(resp.json())
