"""Settings of main_frequentist.py. Edit them here, or override them on the command line by flags of the same names."""

# Data
dataset = "MNIST5k"  # MNIST5k (no download), MNIST, CIFAR10, STL10 and more of torchvision's, or a folder of images
task = "classification"  # or, of a folder: multilabel (labels.csv), regression (targets.csv), segmentation (masks/)
likelihood = None  # that of the task; or noisy_dirichlet, student_t, {"class_weights": "balanced"} …
data_dir = "data"  # where downloaded data is stored
valid_size = 0.1  # fraction of the training images held out for validation
image_size = None  # height,width or one number; None: the data set's own; "own": that of a folder's images
center_crop = False  # of images of another shape, cut out the center instead of stretching the whole
channels = "auto"  # 1 (grey), 3 (RGB), or auto: those of the images
random_shift = 2  # maximal random translation of training images, in pixels
random_flip = "auto"  # horizontal flips of training images: True, False, or auto (color images only)
random_crop = 1.0  # least share of a training image's area that is cut out at random and enlarged; 1: none
num_workers = 4  # processes that decode images, used only if the images do not fit in memory
skip_broken = False  # leave out the images of a folder that cannot be read, and count them

# Network
net_type = "lenet"  # lenet, alexnet, 3conv3fc, resnet18 (or another of torchvision's), or package.module:factory
activation_type = "relu"  # relu, softplus
first_filters = "auto"  # start of the first layer: patches: by the covariance of image patches, against pixel noise;
# random: as torch starts it; auto: patches for grey images
weights = None  # a file of weights to start from, such as torchvision's for its resnet18

# Optimization
n_epochs = 30
batch_size = 128
optimizer = "adam"  # adam or sgd
momentum = 0.9  # of sgd
weight_decay = 0.0  # of all weights; decoupled from Adam's scaling, as in AdamW
lr_start = 1e-3  # for sgd, 0.05 or so
lr_schedule = "linear"  # linear or cosine: the learning rate falls to 0; or constant
warmup_epochs = 0  # epochs in which the learning rate first rises from near 0
patience = 0  # epochs without a better validation NLL before training stops; 0: never

# Running
seed = 0
device = "auto"  # a GPU if there is one; or cpu, cuda, cuda:1, mps …
amp = False  # train in bfloat16 mixed precision
compile = False  # train through torch.compile
deterministic = False  # only deterministic algorithms: needed on a GPU to repeat a run exactly, not on a CPU
resume = False  # continue the run in checkpoint_dir
checkpoint_dir = "checkpoints"
tensorboard = False  # write curves for TensorBoard during training

# Recipes: `--recipe color` puts one of them over the settings above and under the other flags
recipes = {
    "color": {  # what a search found for LeNet on CIFAR-10
        "n_epochs": 60,
        "optimizer": "sgd",
        "lr_start": 0.0557,
        "lr_schedule": "cosine",
        "weight_decay": 2.4e-3,
    },
}
