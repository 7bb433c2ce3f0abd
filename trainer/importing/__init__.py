"""Caption files of other formats and a folder of images -> a directory in Flickr8k's layout."""
