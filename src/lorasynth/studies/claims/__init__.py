"""The claims: each module looks into one or several (`lorasynth.studies.finding`)."""
