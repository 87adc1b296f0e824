"""The thought that a chat server sends in a field of its own, put back into the text that the protocol expects."""

from __future__ import annotations

from deeprec.explore.protocol import ANSWER, END_THINK, THINK

_FIELDS = ("reasoning", "reasoning_content")  # vLLM, Ollama and OpenRouter; SGLang, llama.cpp, DeepSeek and Qwen


def thought_of(part: object) -> str:
    """The piece of a thought in a streamed piece of the openai package."""
    found = (getattr(part, field, None) for field in _FIELDS)
    return next((piece for piece in found if isinstance(piece, str) and piece), "")


class RejoinedText:
    """What the model wrote, from the thought and the content of a segment.

    A server with a reasoning parser takes `</think>` out, and sends the text before it as a thought. The protocol's
    tool calls stand inside the thought, and its answer after the tag: so the tag goes right before the answer, unless
    the server has left one.

    Args:
        context: of the segment. A thought that it does not open is left out.
    """

    def __init__(self, context: str) -> None:
        self._wanted = context.rfind(THINK) > context.rfind(END_THINK)
        self._closing = False  # whether the tag is missing so far
        self._thinking = False  # whether the latest piece was of a thought
        self._text = ""
        self._held = ""

    def add(self, thought: str, content: str) -> str:
        """The text that comes next. Content that may begin a tag is held back until it is known."""
        start = len(self._text)
        if thought and self._wanted:
            self._text += self.rest() + thought
            self._closing, self._thinking = True, True
        if content:
            if self._thinking and not self._text.endswith("\n"):
                self._text += "\n"
            self._text += self._close(self._held + content)
            self._thinking = False
        return self._text[start:]

    def rest(self) -> str:
        """What was held back, at the end of the segment."""
        rest, self._held = self._held, ""
        return rest

    def _close(self, content: str) -> str:
        self._held = ""
        before, answer, after = content.partition(ANSWER)
        if not self._closing or END_THINK in self._text + before:
            self._closing = False
            return content
        if answer:
            self._closing = False
            return f"{before}\n{END_THINK}\n{answer}{after}"
        tags = (ANSWER, END_THINK)
        begun = [n for tag in tags for n in range(1, len(tag)) if content.endswith(tag[:n])]
        known = len(content) - max(begun, default=0)
        self._held = content[known:]
        return content[:known]
