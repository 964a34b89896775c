"""Every sentence the data engine can say, as tables; `questions.wording` chooses among them and fills them in.

A template's fields are {a}, {b}, {c} (references, in the roles that a type gives its objects: {c} is the
anchor of three) and the answer {x}; a capital field starts with a capital letter. The first full wording of
a type is the paper's where the paper shows one. Templates of a claim to confirm or deny are (question, yes,
no); there {x} and {y} are the object that is claimed to win and the other one, or {x} is the claimed word.

What a wording must keep to, so that people and `questions.reading` understand it:
- sides are the object's own in spatial types ("from the perspective of ..."), the viewer's in view types;
- `it` only where a single object is spoken of;
- an anchor or an object compared with follows "of", "from", "to", "than" and the like.
"""
