"""The attentions that docs/quality.md compares, each as keys of vmoba-train, for the grid 24 x 18 x 32 of model.yaml.

cubes_72 and cubes_144 have spatiotemporal layers only: cubes of 3 x 3 x 8 = 72 tokens (192 blocks) and of
6 x 3 x 8 = 144 (96 blocks). cycle has temporal, spatial and spatiotemporal layers in turn (24, 48 and 48 blocks).
A top-k of k blocks out of C attends k / C of the pairs; a tau is chosen for its density on the dense model.

Of cubes_64, whose cubes choose together (tile): share compares shares of attention in place of gates, fine by means
of 2 x 2 x 2 tokens, known by means of one token, which is the choice that knows every share; overall and head let all
heads, or the cubes of one head, compete, each cube a quarter of its even part at least; rest adds the means of what
is not attended, beta with a learnt number for each head and layer. In query each query chooses; mean leaves the heads
that average everything to their means.
"""

CYCLE = ["attention.temporal_chunk=1", "attention.spatial_chunk=[3,4]", "attention.spatiotemporal_chunk=[6,6,8]"]


def cubes(t, h, w):
    return ["attention.partitions=[spatiotemporal]", f"attention.spatiotemporal_chunk=[{t},{h},{w}]"]


def topk(blocks, pool="query_head", select="topk"):
    return [f"attention.select={select}", f"attention.pool={pool}", f"attention.spatiotemporal_topk={blocks}"]


def share(density, select="topk"):
    return [f"attention.select={select}", "attention.pool=query_head", f"attention.density={density}"]


def tau(value, pool):
    return ["attention.select=threshold", f"attention.pool={pool}", f"attention.tau={value}"]


CUBES_72, CUBES_144, CUBES_288 = cubes(3, 3, 8), cubes(6, 3, 8), cubes(6, 6, 8)
CUBES_64 = cubes(4, 4, 4)  # 240 blocks of 48 or 64 tokens
TILE = ["attention.query_tile=block"]
REMAINDER = ["attention.remainder=one_softmax"]
BETA = REMAINDER + ["attention.remainder_beta=learnt"]
FINE = ["attention.gate_block=[2,2,2]"]
FINER = ["attention.gate_block=[1,2,2]"]
KNOWN = ["attention.gate_block=[1,1,1]"]
SHARE = ["attention.score=share"]
MEAN_HEADS = ["attention.mean_heads=[0:4,1:5,2:1,2:2,2:5]"]  # of the dense model, as vmoba-analyze found them


def shares(density, pool="query_head", least=1):
    """The blocks with the largest shares; of pools over several cubes `least` for each cube at least."""
    keys = ["attention.score=share", "attention.select=topk", f"attention.pool={pool}", f"attention.density={density}"]
    return CUBES_64 + TILE + keys + ([f"attention.least_blocks={least}"] if least > 1 else [])


# By the density in percent; 20 % of 240 cubes are 48, 5 % are 12.
OVERALL = {"20": shares(0.2, "overall", least=12), "05": shares(0.05, "overall", least=3)}
HEAD = {"20": shares(0.2, "head_global", least=12), "05": shares(0.05, "head_global", least=3)}

SETTINGS = {
    "dense": ["attention.backend=full"],
    "paper_20": CYCLE + tau(0.263, "head_global"),
    "paper_05": CYCLE + tau(0.062, "head_global"),
    "cycle_topk_20": CYCLE + topk(10) + ["attention.temporal_topk=5", "attention.spatial_topk=10"],
    "cubes_288_topk_20": CUBES_288 + topk(10),
    "cubes_144_topk_20": CUBES_144 + topk(19),
    "cubes_144_topk_05": CUBES_144 + topk(5),
    "cubes_72_topk_20": CUBES_72 + topk(38),
    "cubes_72_topk_10": CUBES_72 + topk(19),
    "cubes_72_topk_05": CUBES_72 + topk(10),
    "cubes_64_topk_20": CUBES_64 + share(0.2),
    "cubes_64_topk_05": CUBES_64 + share(0.05),
    "cubes_64_tile_20": CUBES_64 + share(0.2) + TILE,
    "cubes_64_tile_10": CUBES_64 + share(0.1) + TILE,
    "cubes_64_tile_05": CUBES_64 + share(0.05) + TILE,
    "cubes_64_tile_20_rest": CUBES_64 + share(0.2) + TILE + REMAINDER,
    "cubes_64_tile_10_rest": CUBES_64 + share(0.1) + TILE + REMAINDER,
    "cubes_64_tile_05_rest": CUBES_64 + share(0.05) + TILE + REMAINDER,
    "cubes_64_tile_20_beta": CUBES_64 + share(0.2) + TILE + BETA,
    "cubes_64_tile_10_beta": CUBES_64 + share(0.1) + TILE + BETA,
    "cubes_64_tile_05_beta": CUBES_64 + share(0.05) + TILE + BETA,
    "cubes_64_share_20": shares(0.2),
    "cubes_64_share_05": shares(0.05),
    "cubes_64_fine_20": shares(0.2) + FINE,
    "cubes_64_fine_10": shares(0.1) + FINE,
    "cubes_64_fine_05": shares(0.05) + FINE,
    "cubes_64_fine_05_rest": shares(0.05) + FINE + REMAINDER,
    "cubes_64_fine_20_beta": shares(0.2) + FINE + BETA,
    "cubes_64_fine_10_beta": shares(0.1) + FINE + BETA,
    "cubes_64_fine_05_beta": shares(0.05) + FINE + BETA,
    "cubes_64_fine_05_rest_mean": shares(0.05) + FINE + REMAINDER + MEAN_HEADS,
    "cubes_64_fine_05_beta_mean": shares(0.05) + FINE + BETA + MEAN_HEADS,
    "cubes_64_finer_20": shares(0.2) + FINER,
    "cubes_64_finer_05": shares(0.05) + FINER,
    "cubes_64_known_20": shares(0.2) + KNOWN,
    "cubes_64_known_05": shares(0.05) + KNOWN,
    "cubes_64_query_fine_20": CUBES_64 + share(0.2) + SHARE + FINE,
    "cubes_64_query_fine_05": CUBES_64 + share(0.05) + SHARE + FINE,
    "cubes_64_query_known_20": CUBES_64 + share(0.2) + SHARE + KNOWN,
    "cubes_64_query_known_05": CUBES_64 + share(0.05) + SHARE + KNOWN,
    "cubes_64_head_20": HEAD["20"],
    "cubes_64_head_05": HEAD["05"],
    "cubes_64_overall_20": OVERALL["20"],
    "cubes_64_overall_05": OVERALL["05"],
    "cubes_64_overall_05_free": shares(0.05, "overall"),  # no cube is sure of more than itself
    "cubes_64_overall_20_even": shares(0.2, "overall", least=36),  # of three quarters of its even part
    "cubes_64_overall_05_even": shares(0.05, "overall", least=9),
    "cubes_64_overall_05_even_beta": shares(0.05, "overall", least=9) + BETA,
    "cubes_64_overall_20_rest": OVERALL["20"] + REMAINDER,
    "cubes_64_overall_05_rest": OVERALL["05"] + REMAINDER,
    "cubes_64_overall_20_beta": OVERALL["20"] + BETA,
    "cubes_64_overall_05_beta": OVERALL["05"] + BETA,
    "cubes_64_overall_fine_20": OVERALL["20"] + FINE,
    "cubes_64_overall_fine_05": OVERALL["05"] + FINE,
    "cubes_64_overall_fine_05_beta": OVERALL["05"] + FINE + BETA,
    "cubes_64_random_20": CUBES_64 + share(0.2, select="random") + TILE,
    "cubes_64_random_05": CUBES_64 + share(0.05, select="random") + TILE,
    "cubes_64_random_05_rest": CUBES_64 + share(0.05, select="random") + TILE + REMAINDER,
    "cubes_36_topk_05": cubes(3, 3, 4) + share(0.05),
    "cubes_36_query_fine_20": cubes(3, 3, 4) + share(0.2) + SHARE + FINE,
    "cubes_36_query_fine_05": cubes(3, 3, 4) + share(0.05) + SHARE + FINE,
    "cubes_36_tile_05": cubes(3, 3, 4) + share(0.05) + TILE,
    "cubes_32_topk_05": cubes(4, 4, 2) + share(0.05),
    "cubes_64_own": CUBES_64 + ["attention.select=own"] + TILE,
    "cubes_64_own_rest": CUBES_64 + ["attention.select=own"] + TILE + REMAINDER,
    "cubes_72_own": CUBES_72 + ["attention.select=own"],
    "cubes_72_random_20": CUBES_72 + topk(38, select="random"),
    "cubes_72_random_05": CUBES_72 + topk(10, select="random"),
    "cubes_72_head_20": CUBES_72 + tau(0.265, "head_global"),
    "cubes_72_head_05": CUBES_72 + tau(0.077, "head_global"),
    "cubes_72_overall_20": CUBES_72 + tau(0.254, "overall"),
    "cubes_72_overall_05": CUBES_72 + tau(0.076, "overall"),
    "cubes_72_query_20": CUBES_72 + tau(0.325, "query_head"),
}

# Keys for training alone. A conversion is named "setting" or "setting+recipe+recipe".
RECIPES = {
    "distill": ["train.distill.weight=0.5"],  # half of the loss compares with the dense model
    "teacher": ["train.distill.weight=1"],  # all of it
    "schedule": ["attention.density_steps=100"],  # the density falls from 1
    "warmup": ["attention.dense_warmup_steps=100"],  # full attention first
}


def split_name(name):
    """The setting of a conversion and the keys of its recipes."""
    setting, *recipes = name.split("+")
    return setting, [key for recipe in recipes for key in RECIPES[recipe]]


def conversion_name(name):
    """`name` if it is one, for argparse."""
    setting, *recipes = name.split("+")
    if setting not in SETTINGS or not set(recipes) <= set(RECIPES):
        raise ValueError(f"expected a setting of {', '.join(SETTINGS)} and recipes of {', '.join(RECIPES)}")
    return name
