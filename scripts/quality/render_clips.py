#!/usr/bin/env python3
"""Renders captioned clips of Freedoom levels: the video of docs/quality.md is drawn, not downloaded.

  scripts/quality/render_clips.py data/doom/train --split train --clips 190 --clips-per-visit 4
  scripts/quality/render_clips.py data/doom/val --split val --clips 48 --clips-per-visit 6

A player walks, looks around or steps sideways through a level among its monsters; each clip is an .mp4 and a caption
in a .txt. Levels of the split val are never drawn for train. A visit of a level is a function of --seed and its
number, so that the same arguments give the same pictures. Needs the packages vizdoom (MIT; its Freedoom levels and art
are BSD-3-Clause) and numpy, and the program ffmpeg with libx264.
"""
import argparse
import math
import os
import subprocess

import numpy as np
import vizdoom

FRAMES, FPS, HEIGHT, WIDTH = 189, 16, 144, 256
TICS_A_FRAME = 2
VAL_LEVELS = {"map05", "map12", "map19", "map27", "E1M4", "E2M3", "E3M6", "E4M2"}
LEVELS = [("freedoom2.wad", f"map{i:02d}") for i in range(1, 31)] + \
         [("freedoom1.wad", f"E{e}M{m}") for e in range(1, 5) for m in range(1, 10)]
# Words of a caption for what is in view.
THINGS = {"Zombieman": "zombie", "ShotgunGuy": "gunner", "ChaingunGuy": "gunner", "DoomImp": "imp", "Demon": "demon",
          "Spectre": "demon", "Cacodemon": "cacodemon", "LostSoul": "flying skull", "BaronOfHell": "baron",
          "HellKnight": "knight", "Revenant": "skeleton", "Fatso": "fat monster", "Arachnotron": "spider",
          "PainElemental": "floating head", "ExplosiveBarrel": "barrel", "TechLamp": "lamp", "TechLamp2": "lamp",
          "Column": "lamp", "Candelabra": "candles", "TorchTree": "tree", "BigTree": "tree", "RedTorch": "torch",
          "GreenTorch": "torch", "BlueTorch": "torch", "ShortRedTorch": "torch", "ShortBlueTorch": "torch",
          "ShortGreenTorch": "torch", "TallGreenColumn": "column", "TallRedColumn": "column", "Medikit": "medikit",
          "Stimpack": "medikit", "HealthBonus": "bottle", "ArmorBonus": "helmet", "Clip": "ammunition",
          "Shell": "ammunition", "ClipBox": "ammunition", "ShellBox": "ammunition", "RocketAmmo": "ammunition"}
MOVES = {"explore": (0.5, "walks through"), "scan": (0.2, "stands and looks around in"),
         "strafe": (0.12, "steps sideways in"), "circle": (0.1, "walks a circle in"),
         "back": (0.08, "walks backwards through")}
BRIGHTER = (255 * (np.arange(256) / 255) ** 0.65).round().astype(np.uint8)  # the levels are dark
STAY = [0.0] * 5  # forward, sideways, turn, attack, use


def open_level(wad, level, seed):
    game = vizdoom.DoomGame()
    game.set_doom_game_path(os.path.join(os.path.dirname(vizdoom.__file__), wad))
    game.set_doom_map(level)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_512X288)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    for hide in ("hud", "weapon", "crosshair", "messages", "screen_flashes"):
        getattr(game, "set_render_" + hide)(False)
    for show in ("corpses", "decals", "particles", "effects_sprites"):
        getattr(game, "set_render_" + show)(True)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_doom_skill(3)
    game.set_seed(seed)
    game.set_episode_timeout(0)
    button = vizdoom.Button
    game.set_available_buttons([button.MOVE_FORWARD_BACKWARD_DELTA, button.MOVE_LEFT_RIGHT_DELTA,
                                button.TURN_LEFT_RIGHT_DELTA, button.ATTACK, button.USE])
    game.set_depth_buffer_enabled(True)
    game.set_labels_buffer_enabled(True)
    game.set_objects_info_enabled(True)
    game.set_available_game_variables([vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y])
    game.add_game_args("+con_midtime 0 +con_notifytime 0 +cl_showsecretmessage 0 +cl_blood 0 "
                       "+nomonsterinterpolation 0 +screenblocks 12")
    game.init()
    return game


class Player:
    """A game and whether its monsters leave the player alone, which a command toggles."""

    def __init__(self, wad, level, seed):
        self.game = open_level(wad, level, seed)
        self.enter()

    def enter(self):
        self.calm = False
        self.game.send_game_command("god")
        self.game.make_action(STAY, 2)

    def set_calm(self, calm):
        if calm != self.calm:
            self.game.send_game_command("notarget")
            self.calm = calm

    def go_somewhere(self, rng):
        objects = [o for o in self.game.get_state().objects if o.name != "DoomPlayer"]
        if objects:
            near = objects[rng.integers(len(objects))]
            x, y = int(near.position_x + rng.integers(-24, 25)), int(near.position_y + rng.integers(-24, 25))
            self.game.send_game_command(f"warp {x} {y}")
        self.game.make_action([0, 0, float(rng.uniform(0, 360)), 0, 0], 6)

    def position(self):
        variable = vizdoom.GameVariable
        return self.game.get_game_variable(variable.POSITION_X), self.game.get_game_variable(variable.POSITION_Y)


class Motion:
    """How the player moves during a clip; drawn at its start."""

    def __init__(self, kind, rng):
        self.kind, self.rng, self.turn = kind, rng, 0.0
        self.speed, self.period, self.swing = rng.uniform(2, 4.5), rng.uniform(120, 300), rng.uniform(12, 40)
        self.calm = rng.random() < 0.75
        self.sign = rng.choice([-1, 1])

    def wish(self, i, left, middle, right):
        """The turn that this motion wants at frame i; left, middle and right are distances to what is there."""
        if self.kind in ("explore", "back"):
            turn = 0.10 * (right - left) + self.rng.normal(0, 0.5)
            return turn + (2.5 if right >= left else -2.5) if middle < 10 else turn
        if self.kind == "scan":
            return self.swing * 2 * math.pi / self.period * math.cos(2 * math.pi * i / self.period) * self.sign
        return 0.08 * (right - left) if self.kind == "strafe" else 0.8 * self.sign

    def action(self, i, state):
        depth = state.depth_buffer
        height, width = depth.shape
        band = depth[height * 4 // 10:height * 6 // 10].astype(np.float32)
        left, middle, right = (part.mean() for part in (band[:, :width // 3], band[:, width // 3:2 * width // 3],
                                                        band[:, 2 * width // 3:]))
        turn = self.wish(i, left, middle, right)
        if self.kind != "scan":
            turn = 0.9 * self.turn + 0.1 * float(np.clip(turn, -2.2, 2.2))
        self.turn = turn
        forward = {"explore": self.speed, "scan": 0.0, "strafe": 1.0, "circle": self.speed, "back": -0.7 * self.speed}
        ahead = forward[self.kind] * (0.3 if self.kind == "explore" and middle < 5 else 1)
        aside = self.speed * self.sign * (1 if (i // 64) % 2 == 0 else -1) if self.kind == "strafe" else 0.0
        return [ahead, aside, turn, self.attack(state, width), 1 if i % 24 == 12 else 0]

    def attack(self, state, width):
        if self.calm:
            return 0
        if self.rng.random() < 0.02:
            return 1
        aimed = any(l.object_name in THINGS and abs(l.x + l.width / 2 - width / 2) < 18 and l.width > 14
                    for l in state.labels)
        return 1 if aimed and self.rng.random() < 0.3 else 0


def render(player, rng, kind):
    """Frames of one clip and the words for what is in view; None where the player is stuck or sees little."""
    player.go_somewhere(rng)
    motion = Motion(kind, rng)
    player.set_calm(motion.calm)
    frames, seen, moved, last = [], {}, 0.0, None
    for i in range(FRAMES):
        state = player.game.get_state()
        if state is None:
            return None
        frames.append(state.screen_buffer.copy())
        for label in state.labels:
            word = THINGS.get(label.object_name)
            if word and label.width * label.height > 220:
                seen[word] = seen.get(word, 0) + 1
        player.game.make_action(motion.action(i, state), TICS_A_FRAME)
        here = player.position()
        moved += math.dist(here, last) if last else 0.0
        last = here
    some = np.stack(frames[::FRAMES // 12]).astype(np.float32)
    dull = some.mean() < 16 or np.abs(np.diff(some, axis=0)).mean() < 4 or some.std(axis=(1, 2)).mean() < 14
    if dull or (kind != "scan" and moved < 40):
        return None
    return np.stack(frames), [word for word, count in sorted(seen.items(), key=lambda t: -t[1]) if count >= 12][:3]


def write_video(path, frames):
    count, height, width, _ = frames.shape
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
                    "-r", str(FPS), "-i", "-", "-an", "-vf", f"scale={WIDTH}:{HEIGHT}:flags=area", "-c:v", "libx264",
                    "-preset", "veryfast", "-crf", "27", "-g", "250", "-pix_fmt", "yuv420p", "-threads", "1",
                    "-colorspace", "smpte170m", "-movflags", "+faststart", path], input=frames.tobytes(), check=True)


def visit(number, options, levels, wanted):
    """Renders up to --clips-per-visit clips of one level; returns how many."""
    rng = np.random.default_rng([options.seed, 0 if options.split == "train" else 1, number])
    wad, level = levels[int(rng.integers(len(levels)))] if options.split == "train" else levels[number % len(levels)]
    player, done = Player(wad, level, int(rng.integers(1 << 30))), 0
    for j in range(options.clips_per_visit):
        if done == wanted:
            break
        for _ in range(6):
            kind = list(MOVES)[int(rng.choice(len(MOVES), p=[share for share, _ in MOVES.values()]))]
            clip = render(player, rng, kind)
            if clip:
                break
            if player.game.is_episode_finished():
                player.game.new_episode()
                player.enter()
        if not clip:
            continue
        frames, seen = clip
        view = "; in view: " + ", ".join(seen) if seen else ""
        name = os.path.join(options.out, f"{level}_{number:05d}_{j}")
        write_video(name + ".mp4", BRIGHTER[frames])
        with open(name + ".txt", "w") as file:
            file.write(f"A player {MOVES[kind][1]} level {level} of a computer game{view}.")
        done += 1
    player.game.close()
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--split", choices=["train", "val"], default="train")
    parser.add_argument("--clips", type=int, default=190)
    parser.add_argument("--clips-per-visit", type=int, default=4)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    levels = [pair for pair in LEVELS if (pair[1] in VAL_LEVELS) == (options.split == "val")]
    done = number = 0
    while done < options.clips:
        done += visit(number, options, levels, options.clips - done)
        number += 1
    print(f"{done} clips of {FRAMES} frames in {options.out}")


if __name__ == "__main__":
    main()
