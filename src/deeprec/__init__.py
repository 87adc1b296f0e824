"""DeepRec: a language model explores a catalogue with a recommender as its tool."""

__version__ = "0.1.0"
