"""Every tooltip, by dock and widget: what it does and when to change it, in the words of a user."""

from __future__ import annotations

__all__ = [
    "CLASSES",
    "CORRECT",
    "DOCTOR",
    "EXPORT",
    "INTERACTIVE",
    "LESIONS",
    "OPEN",
    "PRETRAIN",
    "QUEUE",
    "RECOVERY",
    "SEGMENT",
    "TEACH",
    "VIEW",
]


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
    model_card = "What the model was trained on, its licence, its Dice on held-out cases, and its limits."
    stage = "How far to go. Earlier stages are faster and coarser; the last one gives the finished labels."
    device = 'Where the model runs. "auto" uses a GPU where there is one, else the CPU.'
    run = "Segment the image. Every stage is shown as soon as it is done. (Ctrl+Alt+R)"
    run_no_image = "Open an image first: drop a file on the window, or File > Open Sample > fmseg."
    run_no_model = "Choose a model first."
    run_not_downloaded = "This model is not on this machine yet: download it first."
    download = "Shows licence, size, address and citation of this model, and asks before anything is fetched."
    run_busy = "A run is going on. Cancel it, or wait until it is done."
    cancel = "Stop the run. Stages that are done stay. (Ctrl+Alt+C)"
    min_component_no_spacing = (
        "The voxel size of this image is not known (its units are pixels), so the volume of a component is not either. "
        "Nothing is removed."
    )
    no_spacing = (
        "The voxel size is not known: the layer's units are pixels. They are taken for mm; models depend on the size "
        'of structures, so check the result closely. Set the layer\'s scale and units, such as "mm", if you know.'
    )
    region = "Segment only a part: inside a box that you draw, or what is in view. The rest stays unlabelled."
    region_draw = "Add a Shapes layer and draw a rectangle over the part to segment."
    progress = "The stage that is computed now, how much of it is done, and about how long the rest takes."
    times = "Seconds that every stage took in the last run."
    show_all = "Show every stage's layers, or only the best ones. (Ctrl+Alt+G)"
    three_d = "Show the labels in three dimensions, from the front, without the image; again: the slices. (Ctrl+Alt+D)"


class QUEUE:
    """The queue of the Segment dock."""

    files = "Add scans from files. They run with the model and the options that are chosen now."
    folder = "Add every scan of a folder, or a DICOM folder."
    images = "Add the images that are open, as their files hold them."
    results = "The folder that results are written to: SCAN_seg.nii.gz, on the grid of the scan. No file is replaced."
    scan = "The scans, in the order in which they run. Click on a finished one to open it with its result."
    model = "The model that was chosen when the scan was added."
    state = "Waiting, the stage that is computed now, done, failed (click to see why) or cancelled."
    start = "Segment the scans that wait, one after the other. One that fails does not stop the others."
    pause = "Stop when the scan that runs now is done. The others go on waiting."
    nothing_waits = "No scan waits. Add some first."
    up = "Let this scan run earlier."
    down = "Let this scan run later."
    remove = "Take this scan out of the list. Its result stays where it is."
    retry = "Let this scan wait again. Its result is replaced."
    no_retry = "This scan waits or runs already."
    cancel = "Do not segment this scan. The queue goes on with the next."
    no_cancel = "This scan neither waits nor runs."
    cancel_all = "Cancel the scan that runs and all that wait. Results that are done stay."
    busy = "A scan of the queue is being segmented. Pause the queue, or wait until the scan is done."


class CLASSES:
    """The class table."""

    color = "The colour of the class. Click to change it."
    name = "The name of the class. Double-click to change it; it goes into exported files."
    visible = "Show or hide this class. It stays in the labels."
    volume_ml = "Volume of the class in millilitres."
    voxels = "Number of voxels of the class."
    no_spacing = (
        "Number of voxels of the class. Their size is not known: the layer's units are pixels, so there are no "
        'ml. If you know it, set the layer\'s scale and its units, such as layer.units = ("mm", "mm", "mm").'
    )
    why = (
        "Explain the chosen class where the view is (Grad-CAM): a heat map of the regions of the image that the model "
        "relied on. Click the row of a class first."
    )
    jump = "Click a row to go to the middle of the structure."
    statistics = "Save name, volume and voxels of every class as a CSV table."
    no_labels = "There are no labels yet: segment an image, or choose labels."
    no_stages = "Only labels that a model made here have stages."


class CORRECT:
    """The Correct dock."""

    labels = "The labels to correct. The layer that is selected in the list of layers is taken."
    active = "The active class: napari's brush paints with it, and the tools change it."
    finished = "Finished: no tool, and no brush of napari, changes this class any more."
    slices = "Slices that you corrected since the model's answer. Click a number to go there."
    mark = "Count the shown slice as corrected: it is right as it is, also if it is empty. (Ctrl+Alt+Y)"
    drop = "Count this slice as not corrected. Its voxels stay. (Delete)"
    drop_none = "Click a number in the list first."
    fill = "Interpolate the active class between the slices that you painted. (Ctrl+Alt+F)"
    spread = "Correct the slices beside and between the corrected ones in the same way. (Ctrl+Alt+W)"
    fade = "How far a correction reaches beyond the first and the last corrected slice. Move it to see."
    at_once = "Tools write at once; Ctrl+Z undoes them. Without it they show first what would change."
    accept = "Write what is shown: one step, which Ctrl+Z undoes. (Enter)"
    cancel = "Forget what is shown. The labels stay as they are. (Esc)"
    no_layer = "There are no labels: segment an image, open a label file, or add a labels layer."
    no_class = "Choose a class in the table first."
    is_finished = "This class is marked as finished. Untick it to change it."
    no_slices = "Correct a slice with the brush first."
    limit = "The brush paints only where the intensity of the image is in the range. The eraser is free. (Ctrl+Alt+B)"
    range = "The range of intensities. Where the brush can paint is tinted while the range is on."
    pick = "Click on the image: the range becomes that of the intensities around the click."
    no_image = "There is no image on the grid of these labels."
    inside = "The brush paints only over this class, such as a tumour inside an organ. The eraser is free."
    smooth = "Smooth the surface of the active class: what is smaller than this disappears. (Ctrl+Alt+U)"
    grow = "Grow or shrink the active class by this distance on all sides."
    holes = "Fill background that the active class encloses. (Ctrl+Alt+H)"
    in_slices = "Fill holes of the shown slices, each on its own, too. Else they must be enclosed on all sides."
    keep = "Keep the island that you click on, and remove all others of its class. Key, at the mouse: Ctrl+Alt+K."
    remove = "Remove the island that you click on. Key, at the mouse: Ctrl+Alt+V."
    cut = "Paint a line across an island, from border to border, in a layer of its own."
    split = "Click on the part beside the cut that is to become another class."
    no_cut = "Paint a cut first."
    through = "The cut goes through all slices. Else it holds only where it was painted."
    part = "What the part becomes that you click on."
    source = "The labels to copy from. They may lie on another grid of the same patient."
    copy = "Copy this class into the active class. What is there already stays."
    no_source = "There are no other labels with a class."
    other = "The class to swap the active class with, or to merge it into."
    swap = "Exchange the active class and the other one."
    merge = "Give all of the active class to the other one."
    no_other = "There is no other class."
    busy = "Accept or cancel the preview first."


class LESIONS:
    """The list of lesions."""

    open = "List every lesion (connected component) of these labels, with its volume and its uptake."
    image = "The image that uptake is measured in. It lies on the grid of the labels."
    min_ml = "Leave out lesions smaller than this."
    no_spacing = "The voxel size is not known (the units of the labels are pixels), so there are no ml."
    jump = "Click a row to go to the lesion, where it is hottest."
    save = "Save the table as CSV, with a last row for all lesions."
    no_figures = "Nothing was measured yet."


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
    no_names = "There are no classes with names to choose from."
    destination = "Where to write. An existing file is replaced only after you agree."
    browse = "Choose the file or folder to write."
    dicom = "Labels as hospital archives take them, tied to the DICOM series that they were made on."
    dicom_disabled = "DICOM SEG needs labels on an image that was opened from DICOM."
    mesh_smooth = "Smooth the steps between slices. The volume changes by less than about one voxel at the surface."
    export = "Write the files. A file is written completely or not at all. (Ctrl+Alt+E)"
    no_spacing = "The size of a voxel is not known (the layer's units are pixels): the file states 1 mm for a pixel."
    export_no_labels = "There are no labels yet: segment an image, or open a label file."
    export_no_class = "Tick at least one class."
    export_no_place = "Choose where to write first."
    export_busy = "An export is going on. Cancel it, or wait until it is done."
    cancel = "Stop. Nothing half-written is left."
    cancel_idle = "Nothing is being written."
    show_folder = "Open the folder in the file manager."
    copy_path = "Copy where the files are."


class DOCTOR:
    """The Doctor dock."""

    report = "What this machine has and lacks for fmseg."
    again = "Check again. It takes a few seconds; napari stays usable."
    copy = "Copy the report as text, for a question to the developers. Nothing is sent."
    serve_project = "The project whose images are labelled and whose model is taught. Empty serves models only."
    serve_choose = "Choose the folder of a project."
    serve_models = "Tick the models that clients may use, beside the project's own."
    serve_port = "The number at the end of the address. 0 takes a free one."
    serve_start = "Serve this computer's 3D Slicer and OHIF. Other computers: `fmseg serve --token-file` in a terminal."
    serve_stop = "End the server that was started here. What was saved stays."
    serve_copy = "Copy the address, for the field 'MONAI Label server' in 3D Slicer."
    serve_list = "The servers that run on this computer, and who uses them."


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


class TEACH:
    """The Teach dock."""

    project = "The project that is open. It is a folder in nnU-Net's layout; other programs can read it."
    new = "Make a project: choose a folder and name the structures to be learned."
    open = "Open a folder that is a project, or any data set in nnU-Net's raw layout."
    new_folder = "Where volumes, labels and models will lie. Nothing leaves this machine."
    new_names = "The structures that you will label, with a comma between them."
    new_kind = "The modality of the images. CT intensities have a meaning (HU), which training uses."
    new_channels = "Images per patient, such as 2 for T1 and T2 on one grid."
    image = "The image to add. A scan with several channels is one entry."
    labels = "The labels of that image, from any tool: painted here, opened from a file, or found by a model."
    part = (
        "What you have labelled. Slices without any label, or with scribbles all that is not painted, are then neither "
        "used as background nor counted."
    )
    files = "A copy keeps the project complete when the original moves; a link needs no disk space."
    name = "The name of the case in tables. Leave it empty for the next number; never a patient's name."
    new_labels = "Add an empty layer with the project's structures, and paint on the image."
    no_project = "Open or make a project first."
    no_labels = "Choose labels first."
    has_name = "The case has a name. Change it with More, below the table."
    has_image = "The project has the image of this case already."
    add = "Add the image and its labels to the project: completely or not at all."
    save_labels = "Give this case these labels. Those before are kept in the project's history."
    case = "The name of the case. Double-click to open it."
    status = (
        "unlabelled: no labels yet; predicted: a model's labels wait to be corrected; corrected: used for "
        "training; held out: never used for training, only for validation."
    )
    dice = "How well the active model's labels agree with yours: 1 is perfect. Honest for held-out cases only."
    uncertainty = "How uncertain the active model is about this case, from 0 to 1. Label the most uncertain ones first."
    changed = "When its labels changed last."
    next = "The unlabelled case about which the active model is most uncertain."
    more_case = "Earlier labels of the chosen case, leaving it out, another name, or removing it."
    history = "Show the labels that this case had before, and restore them."
    exclude = "Use this case neither for training nor for validation; its files stay."
    include = "Use this case again, in the role that it had."
    rename_case = "Give the case another name, such as one that does not identify the patient."
    remove_case = "Delete the case from the project: image, labels and history."
    show_earlier = "Show these labels as a layer beside the current ones."
    restore = "Replace the current labels by these; the current ones stay in the list."
    open_case = "Show the image and its labels, or what the model found, as layers."
    predict = "Predict the unlabelled cases with the active model, to be corrected, and measure its uncertainty."
    source = (
        "A model of something similar needs less training. The project's own model continues from its weights. The "
        "general start, a network that has learned other organs, helps a training of a minute or two. Where it does "
        "not fit, training starts from scratch."
    )
    minutes = "About how long the training may take on this machine. Five minutes show whether it works."
    details = "Settings that follow from your data and the time, unless you change them."
    choices = "What was chosen for the last training, and why."
    start = "Train on all corrected cases. napari stays usable; the training runs in a separate process."
    stop = "Stop within two seconds. The best weights so far are validated and kept."
    resume = "Resume the interrupted training from its last checkpoint."
    busy = "A training is under way. Stop it, or wait until it is done."
    loss = "How far the predictions are from your labels, step by step. It should fall."
    dice_curve = "Dice of every structure on the validation cases during training: 1 is perfect. It should rise."
    picture = "The prediction for a validation case during training."
    learned = "Unlabelled volumes of the project teach the model, too; held-out ones are never among them."
    advice = "By what the mean Dice on the held-out cases would gain: a guess, from few cases."
    held_out_picture = "The plane with most of the structures: your labels and what the model found, as outlines."
    held_out_case = "Click to open the case with your labels and the model's."
    held_out_dice = "Mean Dice over the structures of the case, which the model never saw: 1 is perfect."
    held_out_class = "The structure with the lowest Dice in this case, where there are several."
    version = "Every training makes a version; none is ever deleted. The full dot marks the active one."
    version_dice = "Mean Dice on held-out cases, when it was made."
    version_cases = "Number of cases used for training."
    version_from = "What it started from."
    version_made = "When it was made (UTC)."
    use_version = "Make this version the active one, whatever its Dice; the Segment dock then uses it."
    roll_back = "Make version {} active again. The current one stays in the list."
    export_model = "Write the chosen version as one file, for another machine."
    review_which = "Which cases Next and Previous go through."
    review_note = "Anything worth remembering of this case. It stays in the project; never write who the patient is."
    review_accept = (
        "These labels are right: predicted ones become the labels of the case. Goes to the next. (Ctrl+Alt+A)"
    )
    review_correct = "Save what you have painted as the labels of the case, and go to the next. Correct it first."
    review_reject = (
        "These labels are not to be used: a labelled case is left out of training until it is accepted. (Ctrl+Alt+J)"
    )
    review_edited = "You have changed these labels. Press Save correction, or undo your changes."
    review_unchanged = "Nothing was painted yet. Paint what is wrong, or press Accept."
    review_nothing = "This case has no labels yet. Label it, or predict it with a model first."
    review_closed = "Open a case first: press Next."
    review_next = "Open the next case. (Ctrl+Page Down)"
    review_previous = "Open the case before. (Ctrl+Page Up)"
    import_model = "Take a model from such a file; its hash is checked. The Segment dock then lists it."


class PRETRAIN:
    """The Pretrain dock."""

    volumes = "A folder with scans of any modality, with its subfolders. No labels are needed. Drop it, or browse."
    browse = "Choose the folder."
    network = "What is pretrained. PCT-Net uses more context than FMUNet; the others are smaller and faster."
    budget = "How long to train. The number of steps follows from how fast the first ones are."
    unit = "Minutes on this machine, or a number of steps."
    out = "Where the run is kept: decoded scans, checkpoints, and in the end the model."
    patch = "Size of the samples, in voxels z, y, x. Larger ones give more context, need more memory and take longer."
    batch = "Samples per step. More need more memory."
    device = 'Where it runs. "auto" uses a GPU where there is one, else the CPU.'
    cache = "Scans are decoded once and kept in the run's folder, up to this size; the oldest go first."
    samples = "Show a held-out sample: the input, the target and the prediction."
    start = "Start. It runs in a separate process; napari stays usable."
    start_no_folder = "Choose a folder with scans first."
    start_no_place = "Choose where to save first."
    start_there = "There is a run in this folder already: resume it, or save somewhere else."
    start_busy = "A pretraining is going on. Stop it, or wait until it is done."
    stop = "Stop within two seconds. The weights are kept; the run can be resumed or used as a start."
    stop_idle = "Nothing is running."
    stop_under_way = "It is stopping already."
    resume = "Resume the run in this folder exactly where it stopped."
    resume_none = "There is no run to resume in this folder."
    progress = "How much is done, and about how long the rest takes."
    facts = "Waiting for data: the share of the time in which nothing is computed. A slow disk makes it large."
    loss = "The loss: the lower the better. Held out: on scans that are not used for training."
    dice = "Agreement (Dice) with the true mixture on held-out scans, 0 to 1."
    left_out = "Files that could not be read. The others are used."
    use = "Open the Teach panel with this model to start from, and copy where it is."
    show_folder = "Open the folder of the run in the file manager."


class VIEW:
    """The View dock."""

    planes = "Show the two other planes below the canvas. You can paint in each; they move together."
    crosshair = "Two lines in every plane, through the place that all of them show."
    move = (
        "Click in a plane, with no tool chosen (pan and zoom), to move all planes there; with a tool, press Ctrl+Alt+X."
    )
    reset = "Show all of the scan in every plane."
    window = "The range of intensities that is shown, as usual for this kind of image. The voxels do not change."
    no_image = "There is no image."
    no_labels = "Choose a labels layer first."
    no_class = "These labels have no class yet."
    structure = "The structure whose opacity is set. It is the label that you paint with."
    opacity = "How much of the scan shows through this structure. The others stay as they are."
    same = "Give every structure this opacity."
    next = "Go to the middle of the next structure. (Ctrl+Alt+PgDown)"
    previous = "Go to the middle of the previous structure. (Ctrl+Alt+PgUp)"


class INTERACTIVE:
    """The nnInteractive dock."""

    about = (
        "Point at a structure, and a server of nnInteractive outlines it in 3-D. The server is a program of its own "
        "(nninteractive-server), on this machine or another one with a GPU."
    )
    address = "Where the server is, with its port. On this machine: http://127.0.0.1:1527."
    key = "The key that the server was started with (--api-key); empty for none. It is not stored."
    connect = "Connect to the server. The licence of its weights is shown before their first use."
    image = "The image to point at. Its voxels are sent to the server with the first prompt."
    tool = "Point: click. Box: drag a rectangle in a slice. Scribble: paint a stroke. Lasso: draw around it in a slice."
    include = "Whether what you draw belongs to the structure, or shows where it is not."
    undo = "Take the last prompt back."
    keep = "Voxels that other structures have stay theirs."
    accept = "Write the preview into the labels on this image, as the label that is chosen there; one step to undo."
    cancel = "Forget the preview and all prompts of this structure."
