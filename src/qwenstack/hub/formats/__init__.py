"""The weight formats that the hub serves: a header's claims, checked against the bytes."""
