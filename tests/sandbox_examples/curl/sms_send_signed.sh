SECRET="YOUR_API_SECRET"
BODY='{"to":"+447700900123","sender_id":"SMSID","message":"Hello"}'
SIGN=$(printf '%s' "$BODY" | openssl dgst -sha256 -hmac "$SECRET" | sed 's/^.* //')

curl -X POST https://smsid.co.uk/api/v1/sms/send \
  -H "X-Api-Key: YOUR_API_KEY" \
  -H "X-Api-Sign: $SIGN" \
  -H "Content-Type: application/json" \
  -d "$BODY"
