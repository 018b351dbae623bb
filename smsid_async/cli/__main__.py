"""`python -m smsid_async.cli` is `smsid`."""

from smsid_async.cli import main

if __name__ == "__main__":
    main()
