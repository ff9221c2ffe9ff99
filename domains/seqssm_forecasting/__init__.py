"""Time-series forecasting with S-Mamba."""
