"""Emulated machines: devices of a machine profile that compute on this processor and charge virtual time."""
