"""The asyncio SDK for the SMSID SMS and one-time-password API."""
