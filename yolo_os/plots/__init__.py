"""Pictures of what was measured, drawn from plain data: nothing below imports this folder."""
