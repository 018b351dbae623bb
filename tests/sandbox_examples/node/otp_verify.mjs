const res = await fetch("https://smsid.co.uk/api/v1/otp/verify", {
  method: "POST",
  headers: { "X-Api-Key": "YOUR_API_KEY", "Content-Type": "application/json" },
  body: JSON.stringify({ to: "+447700900123", code: "123456" }),
});
console.log(await res.json());
