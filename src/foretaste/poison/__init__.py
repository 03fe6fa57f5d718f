"""Who is poisoned, with what, under which label. Never imports torch."""
