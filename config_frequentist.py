"""Hyperparameters of main_frequentist.py: edit them here, or give any of them on the command line by its name."""

# Data
dataset = "MNIST5k"  # MNIST5k (embedded, no network), MNIST, CIFAR10, CIFAR100, or a folder of images
data_dir = "data"
valid_size = 0.1  # fraction of the training images kept for validation
random_shift = 2  # pixels
random_flip = "auto"  # True, False, or auto: images in color only
num_workers = 4  # used only when the images do not fit in memory

# Network
net_type = "lenet"  # lenet, alexnet, 3conv3fc, resnet18, or package.module:factory of your own
activation_type = "relu"  # relu, softplus

# Optimization
n_epochs = 30
batch_size = 128
lr_start = 1e-3
lr_schedule = "linear"  # constant, linear, cosine
patience = 0  # epochs without a better validation NLL before stopping; 0 for never

# Running
seed = 0
device = "auto"
amp = False
compile = False
deterministic = False  # on a CPU the same seed gives the same numbers anyway
resume = False
checkpoint_dir = "checkpoints"
tensorboard = False
