"""How fast it is: ratios, interleaved in one run. Each benchmark returns a JSON-able dict."""
