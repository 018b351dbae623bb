const res = await fetch("https://smsid.co.uk/api/v1/balance", {
  headers: { "X-Api-Key": "YOUR_API_KEY" },
});
console.log(await res.json());
