"""A joke is written, then judged: two steps, one event between them."""

from __future__ import annotations

from stepfleet import Event, StartEvent, StopEvent, Workflow, step


class ScriptedModel:
    """Stands in for a language model, so that the example needs no network."""

    _answers = {
        "Tell a joke about pirates.": "Why do pirates never finish the alphabet? They get lost at C.",
        "Tell a joke about cats.": "Why did the cat sit on the server? It was watching the mouse.",
    }

    async def complete(self, prompt: str) -> str:
        if prompt.startswith("Judge this joke: "):
            words = len(prompt.removeprefix("Judge this joke: ").split())
            return f"{words} words and one pun. Short enough."
        return self._answers.get(prompt, "I know no joke about that.")


class JokeWritten(Event):
    text: str


class JokeFlow(Workflow):
    model = ScriptedModel()

    @step
    async def write(self, ev: StartEvent) -> JokeWritten:
        return JokeWritten(text=await self.model.complete(f"Tell a joke about {ev.topic}."))

    @step
    async def judge(self, ev: JokeWritten) -> StopEvent:
        verdict = await self.model.complete(f"Judge this joke: {ev.text}")
        return StopEvent({"joke": ev.text, "verdict": verdict})
