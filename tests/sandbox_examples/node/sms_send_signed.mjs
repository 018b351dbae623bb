import crypto from "crypto";

const secret = "YOUR_API_SECRET";
const body = JSON.stringify({ to: "+447700900123", sender_id: "SMSID", message: "Hello" });
const sign = crypto.createHmac("sha256", secret).update(body).digest("hex");

await fetch("https://smsid.co.uk/api/v1/sms/send", {
  method: "POST",
  headers: {
    "X-Api-Key": "YOUR_API_KEY",
    "X-Api-Sign": sign,
    "Content-Type": "application/json",
  },
  body,
});
