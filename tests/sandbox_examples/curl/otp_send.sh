curl -X POST https://smsid.co.uk/api/v1/otp/send \
  -H "X-Api-Key: YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{"to": "+447700900123"}'
