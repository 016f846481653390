"""The application: what the vehicles of a scene will do, and who goes before whom.

A graph network predicts five seconds of motion of all vehicles together with the interaction mode
of each pair, after Lee, Gu, Hoang and Marchetti-Bowick, "Joint Interaction and Trajectory
Prediction for Autonomous Driving using Graph Neural Networks" (arXiv 1912.07882).
"""

from bozzetto.trajectory.baselines import BASELINES, constant_turn, constant_velocity
from bozzetto.trajectory.export import export_onnx
from bozzetto.trajectory.files import check_folder, load_predictor, save_predictor
from bozzetto.trajectory.forcing import Forced, force, study
from bozzetto.trajectory.graphs import Graph, batched, counted, graph_of, joined
from bozzetto.trajectory.labels import GOING, IGNORING, MODES, UNKNOWN, YIELDING, label
from bozzetto.trajectory.loaders import load
from bozzetto.trajectory.network import Kind, Output, Predictor, Shape, fresh
from bozzetto.trajectory.page import View, view, write_page
from bozzetto.trajectory.recording import BadRow, Lanes, Recording, Track
from bozzetto.trajectory.scenes import Scene, mirrored, scene_at, scenes_of
from bozzetto.trajectory.scores import HORIZONS, MISS, SUBSETS, Scores, score
from bozzetto.trajectory.simulate import LAYOUTS, simulate
from bozzetto.trajectory.splits import Split, cut, matching, split
from bozzetto.trajectory.training import (
    EDGES,
    RECIPE,
    SIZE,
    TOLD,
    Loss,
    batches,
    class_weights,
    fit,
)

__all__ = [
    "BASELINES",
    "EDGES",
    "GOING",
    "HORIZONS",
    "IGNORING",
    "LAYOUTS",
    "MISS",
    "MODES",
    "RECIPE",
    "SIZE",
    "SUBSETS",
    "TOLD",
    "UNKNOWN",
    "YIELDING",
    "BadRow",
    "Forced",
    "Graph",
    "Kind",
    "Lanes",
    "Loss",
    "Output",
    "Predictor",
    "Recording",
    "Scene",
    "Scores",
    "Shape",
    "Split",
    "Track",
    "View",
    "batched",
    "batches",
    "check_folder",
    "class_weights",
    "constant_turn",
    "constant_velocity",
    "counted",
    "cut",
    "export_onnx",
    "fit",
    "force",
    "fresh",
    "graph_of",
    "joined",
    "label",
    "load",
    "load_predictor",
    "matching",
    "mirrored",
    "save_predictor",
    "scene_at",
    "scenes_of",
    "score",
    "simulate",
    "split",
    "study",
    "view",
    "write_page",
]
