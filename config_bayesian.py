"""Settings of main_bayesian.py. Edit them here, or override them on the command line by flags of the same names."""

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
layer_type = "bbb"  # bbb: one weight draw per step; lrt: noise per output element; flipout: one random sign per example
posterior = "gaussian"  # N(μ, σ²); or k_tied, radial, low_rank, rank1, or {"family": "rank1", "components": 4}
alpha_shape = None  # (1, 1): the posterior N(μ, αμ²) with one α per tensor
priors = {
    "prior_mu": 0.0,
    "prior_sigma": 1.0,
    "posterior_mu_initial": None,  # (mean, std), or None for torch's initialization by fan-in
    "posterior_rho_initial": (-5.0, 0.1),  # (mean, std); σ = softplus(ρ); in wide networks, -7 (see docs/faq.md)
}
patch_prior = "auto"  # strength of a first-layer prior by the covariance of image patches, against pixel noise, or 0;
# auto: for grey images N/(180 β), for color images 0, where 30 with beta_type 1 is a start
bayesian_layers = "all"  # the layers that have a posterior: all, last, or a pattern such as "layer4.*"
freeze = False  # keep the other layers as they start
init_from = None  # a frequentist checkpoint whose weights become the initial posterior means
moped = None  # with init_from or weights: δ (such as 0.1), which sets the initial σ to δ|w|
prior_at_means = False  # with init_from or weights: center the prior at these weights
prior_from = None  # a Bayesian checkpoint whose posterior is the prior of this run's data, and where training starts

# Objective
beta_type = 0.03  # the KL's weight β (1: variational posterior; below 1: cold), or Standard, Blundell, Soenderby
temperature = (
    1.0  # T, of the posterior's entropy alone; below 1 (with beta_type 1) the prior keeps its pull on the means
)
train_ens = 1  # posterior samples per training step
valid_ens = 5  # posterior samples in validation
test_ens = 25  # posterior samples in the final test

# Optimization
n_epochs = 30
batch_size = 128
optimizer = "adam"  # adam, or sgd: the means by SGD (with a larger lr_start, such as 0.05), ρ and log α by Adam;
# or ivon: natural-gradient steps of means and σ (with an lr_start such as 0.3)
momentum = 0.9  # of sgd and ivon
curvature_decay = 0.999  # of ivon: the share of σ's running curvature that a step keeps
weight_decay = 0.0  # of what no prior pulls on, such as batch norm; never of ρ and log α
lr_start = 1e-3  # LeNet tolerates 3e-3 and benefits from it; 3conv3fc stays at chance with it
lr_spread_factor = 10.0  # learning rate of ρ and log α relative to lr_start: they have far to go; for sgd, 0.2 or so
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

# Recording
record_mean_var = False  # record the means and variances of layer outputs during training
recording_freq_per_epoch = 32  # records per epoch
record_layers = None  # names such as ["conv1", "fc3"]; None: all layers

# Recipes: `--recipe color` puts one of them over the settings above and under the other flags
recipes = {
    "color": {  # what a search found for LeNet on CIFAR-10
        "n_epochs": 60,
        "optimizer": "sgd",
        "lr_start": 0.0557,
        "lr_schedule": "cosine",
        "lr_spread_factor": 0.2,
        # A decay of 2.4e-3 of the means, 1/(N σ²); for a wide network, add "posterior_rho_initial": (-7, 0.1).
        "priors": {"prior_sigma": 0.0962},
        "beta_type": 1.0,
        "temperature": 3e-3,
    },
}
