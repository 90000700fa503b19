"""What answers: workflows in code (`definition.py`) and what they see of a message (`turn.py`)."""
