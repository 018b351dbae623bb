import hashlib
import hmac
import json

import requests

secret = "YOUR_API_SECRET"
body = json.dumps({"to": "+447700900123", "sender_id": "SMSID", "message": "Hello"})
sign = hmac.new(secret.encode(), body.encode(), hashlib.sha256).hexdigest()

requests.post(
    "https://smsid.co.uk/api/v1/sms/send",
    headers={
        "X-Api-Key": "YOUR_API_KEY",
        "X-Api-Sign": sign,
        "Content-Type": "application/json",
    },
    data=body,
)
