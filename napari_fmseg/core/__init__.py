"""What everything stands on: nouns, errors, events, resampling, atomic writes, facts about the machine."""
