"""Label policies: what the truth about a mix is, and what is minimised (sections 2.1 to 2.6 of the survey)."""
