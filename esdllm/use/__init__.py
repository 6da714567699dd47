"""For people: answers, streams, blanks to fill in, whole files of prompts."""
