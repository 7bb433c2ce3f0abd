"""Moving pictures: a clip's frames, the shots that they make, and the shots' captions as tracks."""
