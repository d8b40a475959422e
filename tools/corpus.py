"""The text that the demo searches: sixty sentences on ten subjects, and questions to them."""

SENTENCES = (
    # the sea and the sky
    "The tide comes in twice a day because the moon pulls at the oceans.",
    "A total eclipse happens when the moon covers the sun completely.",
    "Jupiter has a storm that is larger than the whole of the Earth.",
    "Sailors once found their way at night by the height of the pole star.",
    "Most of the ocean floor has never been mapped in detail.",
    "Comets grow a tail when sunlight heats their ice.",
    # kitchen
    "Let the bread dough rise in a warm place until it has doubled in size.",
    "A pinch of salt makes chocolate taste sweeter.",
    "Onions turn golden if you fry them slowly in butter.",
    "Rinse the rice until the water runs clear, then simmer it with the lid on.",
    "An overripe banana is best used in a cake.",
    "Sharpen your knives: a dull blade slips and cuts fingers.",
    # health
    "Adults need between seven and nine hours of sleep a night.",
    "Washing your hands with soap removes most germs.",
    "A brisk walk of half an hour a day lowers blood pressure.",
    "The doctor prescribed antibiotics for the infection.",
    "Vaccines teach the immune system to recognise a virus.",
    "Drinking water before a meal can reduce your appetite.",
    # money
    "Compound interest makes small savings grow over many years.",
    "The central bank raised its interest rate to slow inflation.",
    "Keep receipts if you want to deduct expenses from your taxes.",
    "Share prices fell after the company missed its profit forecast.",
    "A fixed mortgage protects you when rates go up.",
    "Spreading your investments lowers the risk of losing everything.",
    # computers
    "The program crashed because it ran out of memory.",
    "Make a backup of your files before you update the operating system.",
    "A strong password is long and is not used anywhere else.",
    "The compiler turns source code into instructions for the processor.",
    "Our website is slow because the database lacks an index.",
    "Neural networks learn by adjusting their weights to reduce an error.",
    # animals
    "Honeybees dance to tell each other where the flowers are.",
    "An octopus can squeeze through a hole the size of a coin.",
    "Cats purr when they are content, and sometimes when they are hurt.",
    "Wolves hunt in packs that are led by a breeding pair.",
    "Salmon swim up the river in which they hatched to lay their eggs.",
    "A hummingbird beats its wings fifty times a second.",
    # history
    "The printing press made books cheap enough for ordinary people.",
    "Roman roads were built so well that some are still in use.",
    "The Berlin Wall fell in November 1989.",
    "Egyptian pyramids were built as tombs for the pharaohs.",
    "Steam engines drove the factories of the industrial revolution.",
    "The first people walked on the moon in July 1969.",
    # travel
    "The last train to the airport leaves at eleven at night.",
    "You need a visa to stay in the country for more than ninety days.",
    "Pack light: you will carry your own bags up the stairs.",
    "The hotel offers a free shuttle to the beach.",
    "Flights are cheaper in the middle of the week.",
    "Our ferry was cancelled because of the storm.",
    # sport and music
    "She ran the marathon in under three hours.",
    "The goalkeeper saved a penalty in the last minute.",
    "Tennis players change ends after every odd game.",
    "The orchestra tunes to the note that the oboe plays.",
    "He practises scales on the piano for an hour every morning.",
    "The band sold out the stadium three nights in a row.",
    # home and garden
    "Tomatoes need full sun and regular watering.",
    "Turn off the power before you replace a light switch.",
    "Prune roses in late winter, before new shoots appear.",
    "A dripping tap wastes thousands of litres a year.",
    "Good insulation keeps a house warm in winter and cool in summer.",
    "Compost turns kitchen waste into food for the soil.",
)

QUERIES = (
    "How can I protect my online accounts?",
    "What should I do to stay fit and well?",
    "why does the sea rise and fall",
    "tips for baking",
    "saving for retirement",
    "How do animals communicate?",
)
