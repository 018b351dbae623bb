const res = await fetch("https://smsid.co.uk/api/v1/otp/send", {
  method: "POST",
  headers: { "X-Api-Key": "YOUR_API_KEY", "Content-Type": "application/json" },
  body: JSON.stringify({ to: "+447700900123" }),
});
console.log(await res.json());
