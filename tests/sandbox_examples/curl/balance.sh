curl https://smsid.co.uk/api/v1/balance \
  -H "X-Api-Key: YOUR_API_KEY"
