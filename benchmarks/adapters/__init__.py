"""Adapters over one integer base against adapters merged and quantised: accuracy, bytes, speed, time of a change."""
