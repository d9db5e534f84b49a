"""Evidence on data whose truth is known: making, measuring and collecting it. No part of the installed package."""
