from deeprec.batch.recommendations import write_recommendations as write_recommendations
from deeprec.config import Config as Config
from deeprec.config import ExploreConfig as ExploreConfig
from deeprec.config import TRMConfig as TRMConfig
from deeprec.config import load_config as load_config
from deeprec.data.catalog import Catalog as Catalog
from deeprec.data.dataset import Dataset as Dataset
from deeprec.data.dataset import Task as Task
from deeprec.data.sources import load_dataset as load_dataset
from deeprec.errors import DeepRecError as DeepRecError
from deeprec.evaluation.evaluate import evaluate as evaluate
from deeprec.evaluation.report import Report as Report
from deeprec.evaluation.systems import System as System
from deeprec.explore.explorer import Explorer as Explorer
from deeprec.explore.policy import Policy as Policy
from deeprec.explore.trace import Trace as Trace
from deeprec.policies.loading import load_policy as load_policy
from deeprec.policies.scripted import ScriptedPolicy as ScriptedPolicy
from deeprec.policies.text import TextPolicy as TextPolicy
from deeprec.retrieval.retriever import Hit as Hit
from deeprec.retrieval.retriever import Query as Query
from deeprec.retrieval.retriever import Retriever as Retriever
from deeprec.retrieval.retriever import top_hits as top_hits
from deeprec.training.run import train_policy as train_policy
from deeprec.trm.trm import TRM as TRM

__version__: str
