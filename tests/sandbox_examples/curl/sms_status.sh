curl -X POST https://smsid.co.uk/api/v1/sms/status \
  -H "X-Api-Key: YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"message_id": "Dcshuhod0PMAAAFQ..."}'
