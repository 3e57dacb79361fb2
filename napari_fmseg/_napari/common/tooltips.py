"""Every tooltip of the panel, by room and widget, in the words of a user: what it does, and when to touch it."""

from __future__ import annotations

__all__ = ["CLASSES", "DOCTOR", "EXPORT", "LESIONS", "OPEN", "PRETRAIN", "RECOVERY", "SEGMENT", "TEACH"]


class OPEN:
    """Opening volumes."""

    drop_zone = "Drop NIfTI, NRRD, MHA or DICOM files, a DICOM folder or a zip here; or use the buttons."
    file = "Open NIfTI, NRRD, MetaImage, DICOM or zip files."
    folder = "Open a folder with a DICOM series or several, or with a volume."
    series = "One row per series or volume found. Choose the one to open; hold Ctrl for several."
    no_series = "Select a row first."
    download = "Fetch this volume from its host, check it and open it. Nothing is fetched before."
    no_download = "There is nothing to download."


class SEGMENT:
    """The Segment dock."""

    image = "The image to segment. A scan with several channels is one entry."
    channel = (
        "The image for this channel of the model, such as the PET beside the CT. It is put on the first image's grid."
    )
    model = "Type to search by name, organ or modality. The line below says what the model finds, and how well."
    model_card = "What the model was trained on, its licence, its Dice on cases it never saw, and its limits."
    stage = "How far to go. Earlier stages are faster and coarser; the last one gives the finished labels."
    device = 'Where the model runs. "auto" takes a graphics card where there is one, else the processor.'
    precision = 'How exactly the model computes. "auto" takes 16 bit where it is faster and proven to be the same.'
    run = "Segment the image. Every stage is shown as soon as it is done. (Ctrl+Alt+R)"
    run_no_image = "Open an image first: drop a file on the window, or File > Open Sample > fmseg."
    run_no_model = "Choose a model first."
    run_busy = "A run is going on. Cancel it, or wait until it is done."
    cancel = "Stop the run. Stages that are done stay. (Ctrl+Alt+C)"
    keep_largest = "Keep only the largest connected part of every class; small islands go."
    min_component_ml = "Remove connected parts smaller than this, in millilitres. 0 keeps all."
    show_stages = "Show the coarse labels and the attention map on the way. Without them the run is a little faster."
    min_part_no_spacing = (
        "The size of a voxel of this image is not known (its units are pixels), so that parts cannot be told by their "
        "ml. Nothing is removed."
    )
    no_spacing = (
        "The size of the voxels is not known: the layer's units are pixels. They are taken for mm; models look at the "
        'size of things, so look at the result closely. Set the layer\'s scale and units, such as "mm", if you know.'
    )
    max_memory_gb = "Most memory that a run may take, of the graphics card or else of the program, in GB. 0: no limit."
    region = "Segment only a part: inside a box that you draw, or what is in view. The rest stays unlabelled."
    region_draw = "Add a Shapes layer and draw a rectangle over the part to segment."
    progress = "The stage that is computed now, how much of it is done, and about how long the rest takes."
    times = "Seconds that every stage took in the last run."
    show_all = "Show every stage's layers, or only the best ones. (Ctrl+Alt+G)"
    three_d = "Show the labels in three dimensions, from the front, without the image; again: the slices. (Ctrl+Alt+D)"


class CLASSES:
    """The class table."""

    number = "The number of the class in the labels."
    color = "The colour of the class. Double-click to change it."
    name = "The name of the class. Double-click to change it; it goes into exported files."
    visible = "Show or hide this class. It stays in the labels."
    volume_ml = "Volume of the class in millilitres."
    voxels = "Number of voxels of the class."
    no_spacing = (
        "Number of voxels of the class. Their size is not known: the layer's units are pixels, so nothing is told in "
        'ml. If you know it, set the layer\'s scale and its units, such as layer.units = ("mm", "mm", "mm").'
    )
    why = (
        "Ask the model why it found the chosen class where the view is: a map of the places of the image that spoke "
        "for it. Click the row of a class first."
    )
    jump = "Click a row to go to the middle of the structure."
    statistics = "Save name, volume and voxels of every class as a CSV table."


class LESIONS:
    """The list of lesions."""

    open = "List every lesion (connected part) of these labels, with its volume and its uptake."
    image = "The image that uptake is measured in. It lies on the grid of the labels."
    min_ml = "Leave out parts smaller than this."
    no_spacing = "The size of a voxel is not known (the units of the labels are pixels), so there are no ml."
    jump = "Click a row to go to the lesion, where it is hottest."
    save = "Save the table as CSV, with a last row for all lesions."


class EXPORT:
    """The Export dock."""

    labels = "The labels to export."
    what = (
        "One file with numbers, a file for every class, surfaces for print and 3-D, or what a hospital's archive takes."
    )
    format = "NIfTI, NRRD or MHA for other programs, DICOM SEG for a hospital's archive, meshes for print and 3-D."
    classes = "The classes to export. Classes without a voxel are left out."
    all_classes = "Tick every class."
    no_classes = "Tick no class."
    painted = "These labels have no names: every number that was painted is exported."
    destination = "Where to write. An existing file is replaced only after you agree."
    browse = "Choose the file or folder to write."
    dicom = "Labels as hospital archives take them, tied to the DICOM series that they were made on."
    dicom_disabled = "DICOM SEG needs labels on an image that was opened from DICOM."
    mesh_smooth = "Smooth the steps between slices. The volume changes by less than about one voxel at the surface."
    export = "Write the files. A file appears whole or not at all. (Ctrl+Alt+E)"
    no_spacing = "The size of a voxel is not known (the layer's units are pixels): the file says 1 mm for a pixel."
    export_no_labels = "There are no labels yet: segment an image, or open a label file."
    export_no_class = "Tick at least one class."
    export_no_place = "Say where to write first."
    export_busy = "An export is going on. Cancel it, or wait until it is done."
    cancel = "Stop. Nothing half-written is left."
    show_folder = "Open the folder in the file manager."
    copy_path = "Copy where the files are."
    statistics = "Write name, volume and voxels of every class as a CSV table."


class DOCTOR:
    """The Doctor dock."""

    report = "What this machine has and lacks for fmseg."
    again = "Look again. It takes a few seconds; napari stays usable."
    copy = "Copy the report as text, for a question to the developers. Nothing is sent."


class RECOVERY:
    """Labels that are offered back."""

    restore = "Add the ticked labels to the viewer as they were."
    later = "Close this window. You are asked again at the next start."
    close = "Close this window. The labels are kept as long as it says."
    delete = "Delete the ticked labels for good."
    save = "Write each of these layers to a file of its own, then close."
    discard = (
        "Close without saving. Painted labels can be put back later: File > IO Utilities > Recently removed labels."
    )
    discard_for_good = "Close without saving. Autosaving is switched off: these labels cannot be put back."
    cancel = "Do not close."
    autosave = "Keeps a copy of labels that you paint, offered back if napari ends unexpectedly."


class TEACH:
    """The Teach dock."""

    project = "The project that is open. It is a folder in nnU-Net's layout; other programs can read it."
    new = "Make a project: choose a folder and name the structures to be learned."
    open = "Open a folder that is a project, or any data set in nnU-Net's raw layout."
    new_folder = "Where volumes, labels and models will lie. Nothing leaves this machine."
    new_names = "The structures that you will label, with a comma between them."
    new_kind = "What the images are. CT has intensities with a meaning (HU), which is made use of."
    new_channels = "Images per patient, such as 2 for T1 and T2 on one grid."
    image = "The image to add. A scan with several channels is one entry."
    labels = "The labels of that image, from any tool: painted here, opened from a file, or found by a model."
    part = (
        "What you have labelled. Slices without any label, or with scribbles all that is not painted, are then neither "
        "learned as background nor counted."
    )
    files = "A copy keeps the project whole when the original moves; a link needs no room."
    name = "How the case is called in tables. Leave it empty for the next number; never a patient's name."
    new_labels = "Add an empty layer with the project's structures, and paint on the image."
    add = "Put the image and its labels into the project. Either all of it is there afterwards, or nothing."
    save_labels = "Give this case these labels. Those before are kept in the project's history."
    case = "The name of the case. Double-click to open it."
    status = (
        "unlabelled: nobody has labelled it; predicted: a model's labels wait to be corrected; corrected: it is "
        "learned from; held out: never learned from, it only measures."
    )
    dice = "How well the present model's labels agree with yours: 1 is perfect. Honest for held-out cases only."
    unsure = "How unsure the present model is of this case, from 0 to 1. The most unsure ones teach it most."
    changed = "When its labels changed last."
    next = "The case without labels that the present model is least sure of."
    more_case = "Earlier labels of the chosen case, leaving it out, another name, or removing it."
    history = "See the labels that this case had before, and take them again."
    exclude = "Neither learn from this case nor measure on it; its files stay."
    include = "Let this case take part again, in the role that it had."
    rename_case = "Give the case another name, such as one that tells nothing of the patient."
    remove_case = "Delete the case from the project: image, labels and history."
    show_earlier = "Show these labels as a layer beside those of now."
    restore = "Put these labels in the place of those of now, which stay in the list."
    open_case = "Show the image and its labels, or what the model found, as layers."
    predict = "Let the present model label the cases that have no labels, to be corrected, and say how unsure it is."
    source = "A model that knows something similar learns faster. The project's own model goes on from where it is."
    minutes = "About how long the training may take on this machine. Five minutes show whether it works."
    details = "What follows from your data and the time, unless you change it."
    choices = "What was chosen for the last training, and why."
    start = "Train on all corrected cases. napari stays usable; the training is a program of its own."
    stop = "Stop within two seconds. The best that was learned so far is measured and kept."
    resume = "Go on with the training that was interrupted, from its last checkpoint."
    loss = "How far the network's answers are from your labels, step by step. It should fall."
    dice_curve = "Dice of every structure on the held-out cases while it learns: 1 is perfect. It should rise."
    picture = "What the network finds in a held-out case, as it learns."
    version = "Every training makes a version; none is ever deleted. The full dot is in use."
    version_dice = "Mean Dice on cases that it had not learned from, when it was made."
    version_cases = "From how many cases it learned."
    version_from = "What it started from."
    version_made = "When it was made (UTC)."
    use_version = "Put this version in use, whatever its Dice. It is the one in the Segment dock then."
    roll_back = "Put version {} in use again. The present one stays in the list."
    export_model = "Write the chosen version as one file, for another machine."
    import_model = "Take a model from such a file; its hash is checked. It is in the Segment dock's list then."


class PRETRAIN:
    """The Pretrain dock."""

    volumes = "A folder with scans of any kind, in folders below it too. No labels are needed. Drop it here, or browse."
    browse = "Choose the folder."
    network = "What is pretrained. PCT-Net looks further than FMUNet, by attention; the others are smaller and faster."
    budget = "How long to learn. The number of steps follows from how fast the first ones are."
    unit = "Minutes on this machine, or a number of steps."
    out = "Where the run is kept: decoded scans, what was learned so far, and in the end the model."
    patch = "Size of the samples, in voxels z, y, x. Larger ones see more at once, need more memory and take longer."
    batch = "Samples per step. More need more memory."
    device = 'Where it runs. "auto" takes a graphics card where there is one, else the processor.'
    cache = "Scans are decoded once and kept in the run's folder, up to this size; the oldest go first."
    samples = "Show what the network makes of a held-out sample: what it sees, what is right, what it says."
    start = "Begin. It runs in a process of its own; napari stays usable."
    start_no_folder = "Choose a folder with scans first."
    start_no_place = "Say where to save first."
    start_there = "There is a run in this folder already: resume it, or save somewhere else."
    start_busy = "A pretraining is going on. Stop it, or wait until it is done."
    stop = "Stop within two seconds. What was learned is kept, can be resumed, and can be started from."
    stop_idle = "Nothing is running."
    resume = "Go on with the run that lies where you save, exactly where it was."
    resume_none = "There is no run to go on with where you save."
    progress = "How much is done, and about how long the rest takes."
    facts = "Waiting for data: the share of the time in which nothing is computed. A slow disk makes it large."
    loss = "The loss: the lower the better. Held out: on scans that the network does not learn from."
    dice = "How much of the mixture the network tells right on held-out scans, 0 to 1."
    left_out = "Files that could not be read. The others are learned from."
    use = "Open the Teach panel with this model to start from, and copy where it is."
    show_folder = "Open the folder of the run in the file manager."
