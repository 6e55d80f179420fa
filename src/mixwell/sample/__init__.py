"""Sample policies: who mixes with whom, how much, how and where (sections 1.1 to 1.9 of the survey)."""
