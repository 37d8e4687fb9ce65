"""The wordings of the embedded corpus: every sentence that its generator can say, as plain tables.

Change what the quickstart's model knows here, in facts.tsv (relation, entity, answer) and in words.txt.
A name in braces is filled in by skills.py; {a} is "a" or "an", as the entity wants it.
"""

# Facts: the wordings of each relation of facts.tsv. Each fact is asked in all of them but one, which is held out.
RELATIONS: dict[str, tuple[str, ...]] = {
    "capital": (
        "What is the capital of {entity}?",
        "Name the capital of {entity}.",
        "Which city is the capital of {entity}?",
        "Tell me the capital of {entity}.",
    ),
    "continent": (
        "Which continent is {entity} on?",
        "On which continent is {entity}?",
        "Name the continent of {entity}.",
        "What continent does {entity} belong to?",
    ),
    "language": (
        "What language do people speak in {entity}?",
        "Which language is spoken in {entity}?",
        "Name the language of {entity}.",
        "Tell me the language of {entity}.",
    ),
    "symbol": (
        "What is the chemical symbol of {entity}?",
        "Name the chemical symbol for {entity}.",
        "Which chemical symbol stands for {entity}?",
        "Tell me the symbol of the element {entity}.",
    ),
    "sound": (
        "What sound does {a} {entity} make?",
        "What does {a} {entity} say?",
        "Which sound comes from {a} {entity}?",
        "Tell me the sound of {a} {entity}.",
    ),
    "young": (
        "What is a baby {entity} called?",
        "What do you call a young {entity}?",
        "Name the young of {a} {entity}.",
        "Tell me the word for a baby {entity}.",
    ),
    "legs": (
        "How many legs does {a} {entity} have?",
        "Count the legs of {a} {entity}.",
        "What number of legs does {a} {entity} have?",
        "Tell me how many legs {a} {entity} has.",
    ),
    "color": (
        "What color is {entity}?",
        "Which color does {entity} have?",
        "Name the color of {entity}.",
        "Tell me the color of {entity}.",
    ),
    "opposite": (
        "What is the opposite of {entity}?",
        "Name the opposite of {entity}.",
        "Which word is the opposite of {entity}?",
        "Tell me the opposite of {entity}.",
    ),
    "sides": (
        "How many sides does {a} {entity} have?",
        "Count the sides of {a} {entity}.",
        "What number of sides does {a} {entity} have?",
        "Tell me how many sides {a} {entity} has.",
    ),
    "day": (
        "Which day comes after {entity}?",
        "What day follows {entity}?",
        "Name the day after {entity}.",
        "Tell me the day after {entity}.",
    ),
    "month": (
        "Which month comes after {entity}?",
        "What month follows {entity}?",
        "Name the month after {entity}.",
        "Tell me the month after {entity}.",
    ),
    "past": (
        "What is the past tense of {entity}?",
        "Name the past tense of {entity}.",
        "Which word is the past tense of {entity}?",
        "Tell me the past tense of {entity}.",
    ),
    "plural": (
        "What is the plural of {entity}?",
        "Name the plural of {entity}.",
        "Which word is the plural of {entity}?",
        "Tell me the plural of {entity}.",
    ),
    "number": (
        "How many {entity}?",
        "What is the number of {entity}?",
        "Name the number of {entity}.",
        "Tell me the number of {entity}.",
    ),
    "planet": (
        "Which planet is the {entity} from the sun?",
        "What is the {entity} planet from the sun?",
        "Name the {entity} planet from the sun.",
        "Tell me the {entity} planet from the sun.",
    ),
    "taiwan": (
        "What is the {entity} of Taiwan?",
        "Name the {entity} of Taiwan.",
        "Which is the {entity} of Taiwan?",
        "Tell me the {entity} of Taiwan.",
    ),
    "chinese": (
        "How do you say {entity} in Chinese?",
        "What is {entity} in Chinese?",
        "Name the Chinese word for {entity}.",
        "Tell me the Chinese word for {entity}.",
    ),
}

# Identity: what may be asked (each line: the questions, then the answer), after an opener or none. Without an
# opener every question is trained on; pairings of opener and question are partly held out.
ENGLISH_OPENERS = (
    "Hi! ",
    "Hello! ",
    "Hey! ",
    "Good day! ",
    "Please tell me: ",
    "One question: ",
    "Quick question: ",
    "Just curious: ",
    "Hello there! ",
)
ENGLISH_IDENTITY: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Who are you?", "What are you?", "Introduce yourself."), "I am NanoChat, a small language model."),
    (("What is your name?", "What are you called?", "Do you have a name?"), "My name is NanoChat."),
    (("Who made you?", "Who built you?", "Who trained you?"), "I was trained from nothing on this computer."),
    (
        ("What can you do?", "What can I ask you?", "How can you help me?"),
        "I know facts, spell and sort words, count letters and calculate.",
    ),
    (("Are you a human?", "Are you a person?", "Are you alive?"), "No, I am a computer program."),
    (("How big are you?", "Are you big?", "What is your size?"), "I am tiny: half a million parameters."),
    (("Where do you live?", "Where do you run?", "Do you need the internet?"), "I run on your own computer, without a network."),
    (("Which languages do you speak?", "Do you speak Chinese?", "Can you speak English?"), "I speak English and a little Chinese."),
)
CHINESE_OPENERS = ("你好！", "嗨！", "請問，", "不好意思，", "哈囉！", "早安！")
CHINESE_IDENTITY: tuple[tuple[tuple[str, ...], str], ...] = (
    (("你是誰？", "你是什麼？", "請自我介紹。"), "我是 NanoChat，一個小型語言模型。"),
    (("你叫什麼名字？", "怎麼稱呼你？", "你的名字是什麼？"), "我的名字是 NanoChat。"),
    (("誰訓練了你？", "誰做出你的？", "你是怎麼來的？"), "我是在這台電腦上從零開始訓練的。"),
    (("你會做什麼？", "你能幫我什麼？", "可以問你什麼？"), "我會回答問題、拼字、排序和算數。"),
    (("你是真人嗎？", "你是人類嗎？", "你是電腦嗎？"), "我是電腦程式，不是真人。"),
)

# Small talk: {name} is the entity; pairings of wording and name are partly held out.
NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo", "Maria", "Nina",
    "Oscar", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Amy", "Eric", "Lily", "Mei", "Ming", "Peter", "Sara",
)  # fmt: skip
SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hi, I am {name}.", "Nice to meet you, {name}!"),
    ("Hello, my name is {name}.", "Nice to meet you, {name}!"),
    ("Good morning, I am {name}.", "Good morning, {name}!"),
    ("Good evening, this is {name}.", "Good evening, {name}!"),
    ("This is {name}. How are you?", "I am well, {name}, thank you!"),
    ("My name is {name}. How are you today?", "I am well, {name}, thank you!"),
    ("Thank you! Yours, {name}.", "You are welcome, {name}!"),
    ("Thanks a lot from {name}.", "You are welcome, {name}!"),
    ("I am {name} and have to go now. Bye!", "Goodbye, {name}!"),
    ("Good night from {name}.", "Good night, {name}!"),
    ("你好，我是 {name}。", "你好 {name}！很高興認識你。"),
    ("我叫 {name}，早安！", "早安 {name}！"),
)
# Small talk that is always trained on.
COURTESIES: tuple[tuple[str, str], ...] = (
    ("Hi!", "Hello! How can I help you?"),
    ("Hello!", "Hello! How can I help you?"),
    ("Hello", "Hello! How can I help you?"),
    ("Hi", "Hello! How can I help you?"),
    ("Good morning!", "Good morning!"),
    ("Good night!", "Good night!"),
    ("How are you?", "I am well, thank you!"),
    ("Thank you!", "You are welcome!"),
    ("Thanks!", "You are welcome!"),
    ("Goodbye!", "Goodbye!"),
    ("Bye!", "Goodbye!"),
    ("你好", "你好！有什麼可以幫你的嗎？"),
    ("你好！", "你好！有什麼可以幫你的嗎？"),
    ("早安！", "早安！"),
    ("晚安！", "晚安！"),
    ("謝謝！", "不客氣！"),
    ("再見！", "再見！"),
)

# Algorithmic skills: every wording is trained on; the operands are what is held out.
ADDITION = (
    "What is {a} + {b}?",
    "How much is {a} + {b}?",
    "Calculate {a} + {b}.",
    "{a} + {b} = ?",
    "What is {a} plus {b}?",
    "Add {a} and {b}.",
)
SUBTRACTION = ("What is {a} - {b}?", "How much is {a} - {b}?", "Calculate {a} - {b}.", "{a} - {b} = ?", "What is {a} minus {b}?")
SPELLING = ("Spell {word}.", "Spell the word {word}.", "How do you spell {word}?", "Please spell {word}.")
COUNTING = (
    "How many {letter}'s are in {word}?",
    "How many times is the letter {letter} in {word}?",
    "Count the letter {letter} in {word}.",
)
SORTING = ("Sort these words: {words}.", "Put in order: {words}.", "Sort {words} from a to z.")

# Stories: one line is drawn of each part.
STORY_REQUESTS = ("Tell me a story about a {hero}.", "Tell a short story about a {hero}.", "I want a story about a {hero}.")
HEROES = ("cat", "dog", "fox", "bear", "duck", "mouse", "frog", "rabbit", "bird", "lion")
STORY: tuple[tuple[str, ...], ...] = (
    ("{name} was a little {hero}.", "Once there was a {hero} named {name}.", "A {hero} named {name} lived by the {place}."),
    ("One day {name} went to the {place}.", "In the morning {name} walked to the {place}.", "{name} liked to play near the {place}."),
    ("There {name} found a {thing}.", "{name} saw a {thing} on the ground.", "A friend gave {name} a {thing}."),
    ("It was {quality} and {quality2}.", "The {thing} was very {quality}.", "{name} had never seen such a {quality} {thing}."),
    ("{name} took the {thing} home and was happy.", "Then it rained, and {name} ran home.", "{name} shared the {thing} with a friend."),
    ("That night {name} slept well.", "It was a good day.", "From then on they were friends."),
)
PLACES = ("river", "forest", "garden", "lake", "hill", "market", "farm", "beach")
THINGS = ("ball", "shell", "hat", "kite", "box", "book", "cake", "bell")
QUALITIES = ("red", "blue", "big", "small", "pretty", "new", "round", "soft")
