"""How far captions can be trusted: `app.captioner.confidence` is fitted here."""
