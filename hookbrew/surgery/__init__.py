"""Changes of models by module path: a student made out of its teacher, and edits that can be undone."""
