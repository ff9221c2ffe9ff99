"""Selective scan recurrences."""
