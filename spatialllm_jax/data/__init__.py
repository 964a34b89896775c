"""Records -> batches: storage, images and region marks, chat templates and masks, mixing, packing."""
