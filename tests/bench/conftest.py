"""The scripted phone."""

from fake_phone import phone

__all__ = ["phone"]
