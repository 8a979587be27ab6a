"""OpenVINO as a hal backend."""
