"""Explorers in a real browser: JupyterLab on loopback, headless Chromium, mouse and keyboard."""
