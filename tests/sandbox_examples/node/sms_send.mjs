const res = await fetch("https://smsid.co.uk/api/v1/sms/send", {
  method: "POST",
  headers: { "X-Api-Key": "YOUR_API_KEY", "Content-Type": "application/json" },
  body: JSON.stringify({ to: "+447700900123", sender_id: "SMSID", message: "Hello from SMSID" }),
});
console.log(await res.json());
