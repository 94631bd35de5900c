"The models, and what a Subject can do: whoever imports a part of this room can save one."

from compress_lab.models import saving as saving
